//! What the core costs natively: reading requests, deciding, remembering prompts.
//!
//! Native figures rank alternatives and catch regressions within minutes. What a request costs inside
//! Envoy's V8, host calls included, is measured by the testbed's `bench` verb.

mod bodies;
mod decision;
mod exchange;
mod metrics_page;
mod prefix;
mod scan;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    // There are some hundred benchmarks; options on the command line come last and win.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    scan::bench(&mut criterion);
    decision::bench(&mut criterion);
    prefix::bench(&mut criterion);
    exchange::bench(&mut criterion);
    metrics_page::bench(&mut criterion);
    criterion.final_summary();
}
