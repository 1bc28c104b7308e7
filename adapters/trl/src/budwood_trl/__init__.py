"""TRL's trainers under budwood."""
