"""A run as a folder of plain files: paths and lock, metrics, speed, console; knows no torch and no model."""
