"""Flow-matching policies of LeRobot as flow fields and trainer-neutral policies. Needs the extra ``lerobot``."""
