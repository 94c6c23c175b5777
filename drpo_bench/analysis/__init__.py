"""From run directories to tables, statistics, figures and reports; reads results only, never imports torch."""
