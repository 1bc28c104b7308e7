"""Ready-made reward terms, one module a family of environments."""
