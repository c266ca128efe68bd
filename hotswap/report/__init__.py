"""How it is told: findings and the results of a run as text, JSON, SARIF, JUnit XML and an HTML page."""
