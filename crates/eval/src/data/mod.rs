//! Data files of tasks, as published, as rows.
