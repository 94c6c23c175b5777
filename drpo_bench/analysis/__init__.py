"""From run directories to tables, statistics, figures and reports: reads results, never imports torch."""
