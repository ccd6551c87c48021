"""One run: its folder, journal, evaluations, display and trackers, and how it goes on."""
