"""Explanations of failed runs: values that are not finite, too little memory, and errors of user code."""
