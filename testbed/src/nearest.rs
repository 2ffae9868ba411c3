//! The known name that is most like a strange one.

/// A name, how alike it is (1: the same), and what comes with it.
pub type Near<'a, T> = (f64, &'a str, T);

/// The most alike of the known names; the last of several. `None` if none is known.
pub fn nearest<'a, T>(
    strange: &str,
    known: impl IntoIterator<Item = (&'a str, T)>,
) -> Option<Near<'a, T>> {
    let scored = known
        .into_iter()
        .map(|(name, with)| (strsim::jaro_winkler(strange, name), name, with));
    scored.max_by(|left, right| left.0.total_cmp(&right.0))
}
