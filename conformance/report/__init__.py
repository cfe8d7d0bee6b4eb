"""What a run found, for people and for programs.

tables: rich tables and JSON. page: one HTML page. junit: JUnit XML. evidence, picture: the matrices of failing cases.
reproduce: the command that does one check again.
"""
