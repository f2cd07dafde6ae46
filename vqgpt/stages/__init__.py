"""What each command does: configuration in, files out, a result to show. Stages do not print."""
