"""The paper's claims, the rules that judge them, and the tables of the README."""
