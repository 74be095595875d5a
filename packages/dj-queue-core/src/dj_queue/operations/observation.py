"""What a backend looks like now, for `stats.json`, metrics and the dashboard, within a bounded cost."""
