"""Reports for people: page, model card, tables, dashboards."""
