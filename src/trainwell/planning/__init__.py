"""What a configuration means before anything runs: steps, schedules, sizes, warnings and their explanations; pure."""
