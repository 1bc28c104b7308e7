"""A third party's policy and environment, registered with LeRobot when this package is imported."""
