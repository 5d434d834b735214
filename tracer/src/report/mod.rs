//! What a person or a program reads: the table and the JSON.
