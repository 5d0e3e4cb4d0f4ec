"""What people read: report page, model card, tables, dashboards."""
