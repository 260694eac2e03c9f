"""What going back would lose: rows written since a backup, counted before anybody decides, and kept afterwards."""
