"""The parts of an open stage: its teachers, its module and terms, its batches, and the state that training changes."""
