"""The ground floor of every process: entry point, exit codes, logs, ranks, files, locks."""
