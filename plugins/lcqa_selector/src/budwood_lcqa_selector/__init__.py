"""Smallest sufficient evidence for long-context question answering (Context-Picker)."""
