"""What runs beside a RunEngine: document log, link to the service, assemblers, plans."""
