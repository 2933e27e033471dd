"""The command line. Its modules import nothing heavy at the top, so that `openmercury --help` answers at once."""
