"""Policies of LeRobot trained under budwood, offline and online."""
