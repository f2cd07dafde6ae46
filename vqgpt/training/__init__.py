"""What both trainings share: the loop, the files of a run, schedules, logs. Knows neither images nor tokens."""
