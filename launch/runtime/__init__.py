"""What every process uses: entry point, exit codes, logs, ranks, files, locks."""
