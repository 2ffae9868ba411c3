//! The `browser-test` verb: the filter's status page in a real headless Chromium.
//!
//! A test is a name and an async function. It gets a [`site::Site`] of its own, which serves the page
//! as the filter will, over facts that the test chooses, and a [`tab::Tab`] in a browser of its own.
//! It asserts what a person sees, what the page asked for and that its console stayed silent. To add
//! a theme, write `browser/<theme>.rs` with a `cases()` and name it in [`cases`].

mod asking;
mod chromium;
mod contact;
mod looks;
mod policy;
pub(crate) mod sample;
mod showing;
mod site;
mod tab;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use libtest_mimic::{Failed, Trial};

use chromium::Chromium;
use site::{Document, Site};
use tab::{Screen, Tab};

/// A test that takes longer hangs.
const TEST_DEADLINE: Duration = Duration::from_secs(120);
/// What a Chromium is called, the smallest first.
const BROWSERS: [&str; 6] = [
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// Where the page is.
#[derive(clap::Args)]
pub struct PageArgs {
    /// The page.
    #[arg(long, default_value = "filter/src/status.html")]
    page: PathBuf,
    /// The content security policy that it is sent with.
    #[arg(long, default_value = "filter/src/status.csp")]
    policy: PathBuf,
}

/// Arguments of the `browser-test` verb.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    page: PageArgs,
    /// The browser; absent, the first Chromium or Chrome on the PATH.
    #[arg(long)]
    browser: Option<PathBuf>,
    /// Instead of testing, write a picture of the page with plausible facts to this PNG file.
    #[arg(long, value_name = "FILE")]
    screenshot: Option<PathBuf>,
    /// Width of the picture, in CSS pixels.
    #[arg(long, default_value_t = 1400)]
    width: u32,
    /// Height of the picture, in CSS pixels.
    #[arg(long, default_value_t = 1500)]
    height: u32,
    /// Take the picture with a dark colour scheme.
    #[arg(long)]
    dark: bool,
    #[command(flatten)]
    runner: libtest_mimic::Arguments,
}

/// Arguments of the `status-mock` verb.
#[derive(clap::Args)]
pub struct MockArgs {
    #[command(flatten)]
    page: PageArgs,
    /// Port on the loopback interface; 0: any.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// Runs the tests, and exits with an error status if one fails.
///
/// Without a browser all tests are skipped, loudly; with `CI` in the environment that is an error.
pub fn run(args: Args) -> anyhow::Result<()> {
    let document = Arc::new(Document::load(&args.page.page, &args.page.policy)?);
    let browser = match &args.browser {
        Some(path) => Some(path.clone()),
        None => installed(),
    };
    if browser.is_none() && (std::env::var_os("CI").is_some() || args.screenshot.is_some()) {
        bail!(missing());
    }
    if let (Some(file), Some(browser)) = (&args.screenshot, &browser) {
        let screen = Screen {
            width: args.width,
            height: args.height,
            dark: args.dark,
        };
        return block_on(looks::take_picture(browser, &document, screen, file));
    }
    if browser.is_none() {
        eprintln!("\nSKIPPED: {}\n", missing());
    }
    let trials = cases()
        .into_iter()
        .map(|case| {
            let (browser, document) = (browser.clone(), Arc::clone(&document));
            let (name, skipped) = (case.name, browser.is_none());
            let run = move || case.run(browser.as_deref(), &document);
            Trial::test(name, run).with_ignored_flag(skipped)
        })
        .collect();
    libtest_mimic::run(&args.runner, trials).exit()
}

/// Serves the page with plausible, moving facts until Ctrl-C.
pub fn run_mock(args: MockArgs) -> anyhow::Result<()> {
    let document = Arc::new(Document::load(&args.page.page, &args.page.policy)?);
    block_on(async {
        let site = Site::start(&document, args.port).await?;
        site.show_sample();
        println!("{}", site.page_url());
        crate::envoy::end_signal().await
    })
}

/// Every test, theme by theme.
fn cases() -> Vec<Case> {
    [
        showing::cases(),
        contact::cases(),
        asking::cases(),
        looks::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Body = Box<dyn Fn(&Path, &Arc<Document>) -> anyhow::Result<()> + Send + Sync>;

/// One test.
struct Case {
    name: &'static str,
    body: Body,
}

impl Case {
    /// A test called `name`.
    fn new<Test>(name: &'static str, test: Test) -> Self
    where
        Test: AsyncFn(&Stage) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let body = move |browser: &Path, document: &Arc<Document>| {
            block_on(async {
                let stage = Stage {
                    site: Site::start(document, 0).await?,
                    browser: Chromium::start(browser).await?,
                };
                tokio::time::timeout(TEST_DEADLINE, test(&stage))
                    .await
                    .with_context(|| format!("still running after {TEST_DEADLINE:?}"))?
            })
        };
        Self {
            name,
            body: Box::new(body),
        }
    }

    fn run(&self, browser: Option<&Path>, document: &Arc<Document>) -> Result<(), Failed> {
        let browser = browser.ok_or_else(missing)?;
        (self.body)(browser, document).map_err(|error| Failed::from(format!("{error:#}")))
    }
}

/// What a test is given.
struct Stage {
    site: Site,
    browser: Chromium,
}

impl Stage {
    /// Opens the page and waits until it has drawn what the site says.
    async fn open(&self, screen: Screen) -> anyhow::Result<Tab<'_>> {
        let tab = Tab::new(&self.browser, screen).await?;
        tab.go(&self.site.page_url()).await?;
        tab.until("the page is drawn", "document.title.endsWith('· warmpath')")
            .await?;
        Ok(tab)
    }

    /// Nothing was complained about, and nobody but the site was asked.
    async fn expect_clean(&self, tab: &Tab<'_>) -> anyhow::Result<()> {
        let complaints = tab.complaints();
        anyhow::ensure!(complaints.is_empty(), "the console says: {complaints:#?}");
        self.expect_own_requests(tab)
    }

    /// Nobody but the site was asked.
    fn expect_own_requests(&self, tab: &Tab<'_>) -> anyhow::Result<()> {
        let origin = format!("{}/", self.site.origin());
        let mut urls = tab.requests();
        anyhow::ensure!(!urls.is_empty(), "the browser reports no request at all");
        urls.retain(|url| !url.starts_with(&origin) && url != "data:,");
        anyhow::ensure!(urls.is_empty(), "requests elsewhere: {urls:#?}");
        Ok(())
    }
}

/// `named!("theme": a, b)` names the tests `theme::a` and `theme::b` after their functions.
macro_rules! named {
    ($theme:literal: $($test:ident),+ $(,)?) => {
        vec![$($crate::browser::Case::new(concat!($theme, "::", stringify!($test)), $test)),+]
    };
}
use named;

fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    BROWSERS
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)))
        .find(|candidate| candidate.is_file())
}

fn missing() -> String {
    format!(
        "the status page was not tested, for there is no browser. Any of {} on the PATH will do; \
         on Debian: apt-get install chromium-headless-shell",
        BROWSERS.join(", ")
    )
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(work)
}
