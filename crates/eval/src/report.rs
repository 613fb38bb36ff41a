//! A run of tasks in one page.
