//! The content security policy that the status page is sent with.
//!
//! It names the page's one script and one style by their SHA-256, so nothing else that found its
//! way into the page would run. A page that changed needs a new policy; [`check`] says which.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

/// What the module may carry for the page, in bytes.
const MAX_PAGE_BYTES: usize = 24 * 1024;

/// The policy for a page.
///
/// # Errors
/// The page has not exactly one inline script and one inline style.
fn of(html: &str) -> anyhow::Result<String> {
    let script = digest(only(html, "script")?);
    let style = digest(only(html, "style")?);
    Ok(format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ))
}

/// The page is small, and the policy it is sent with is its own.
pub(super) fn check(html: &str, sent: &str) -> anyhow::Result<()> {
    ensure!(
        html.len() < MAX_PAGE_BYTES,
        "the status page has {} bytes; the module has room for less than {MAX_PAGE_BYTES}",
        html.len()
    );
    let own = of(html)?;
    ensure!(
        sent.trim_end() == own,
        "the status page has changed; its policy is now\n{own}"
    );
    Ok(())
}

fn digest(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

fn only<'h>(html: &'h str, tag: &str) -> anyhow::Result<&'h str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let (_, rest) = html
        .split_once(&open)
        .with_context(|| format!("the page has no {open}"))?;
    let (inside, rest) = rest
        .split_once(&close)
        .with_context(|| format!("the page has no {close}"))?;
    ensure!(
        !rest.contains(&format!("<{tag}")),
        "the page has more than one {open}"
    );
    Ok(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_policy_is_of_the_shipped_page() {
        let page = include_str!("../../../filter/src/status.html");
        check(page, include_str!("../../../filter/src/status.csp")).unwrap();
    }

    #[test]
    fn the_shipped_page_brings_nothing_along() {
        let page = include_str!("../../../filter/src/status.html");
        for foreign in [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
        ] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        // The one address is the name of a language, which is never asked for.
        let links = page.replace("http://www.w3.org/", "");
        assert!(!links.contains("://"), "a foreign address");
        assert!(!page.contains(" src="), "an outside resource");
    }

    #[test]
    fn a_changed_script_changes_the_policy() {
        let page = "<style>a</style><script>b</script>";
        let own = of(page).unwrap();
        // printf b | openssl dgst -sha256 -binary | base64
        assert!(own.contains("script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='"));
        check(page, &own).unwrap();
        assert!(check("<style>a</style><script>c</script>", &own).is_err());
        assert!(of("<style>a</style><script>b</script><script>c</script>").is_err());
    }
}
