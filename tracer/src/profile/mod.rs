//! Pure folds over a capture: sites, growth, completeness.
