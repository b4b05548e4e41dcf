"""What everything stands on: errors, files, locks, and the installed packages."""
