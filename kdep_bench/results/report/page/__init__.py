"""index.html of a results folder: data that the templates in `report/templates` show."""
