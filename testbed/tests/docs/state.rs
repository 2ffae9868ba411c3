//! The sizes that docs/architecture.md gives for shared state.

use warmpath_core::board::{MOST_NEWS, Row};
use warmpath_core::load::Load;
use warmpath_core::prefix::table::{SET_BYTES, SLOT_BYTES};
use warmpath_core::rate::Rate;

use crate::pages::page;

/// The row of the table of keys that begins with this key.
fn row(key: &str) -> String {
    let table = page("docs/architecture.md").table("State");
    let key = format!("`{key}`");
    let row = table.rows.iter().find(|row| row[0] == key);
    row.expect(&key).join(" | ")
}

/// The sum of the sizes in parentheses, `(8)` or `(8 bytes)`, of a part of a row.
fn sum(text: &str) -> usize {
    let size = |part: &str| {
        part.split_once(')')?
            .0
            .split(' ')
            .next()?
            .parse::<usize>()
            .ok()
    };
    let sizes = text.split('(').skip(1).filter_map(size);
    sizes.sum()
}

fn check_board<R: Row>() {
    let row = row(&format!("{}/SLOT", R::KEY));
    let (_, fields) = row.split_once("endpoint: ").expect("fields of an endpoint");
    let (fields, _) = fields.split_once(" | ").expect("a size");
    assert_eq!(sum(fields), 2 + R::BYTES, "{fields}");
    let size = format!("13 + {} bytes", 2 + R::BYTES);
    let most = format!("at most {MOST_NEWS} endpoints");
    for wanted in [&size, &most] {
        assert!(row.contains(wanted), "no {wanted:?} in {row}");
    }
}

#[test]
fn columns_are_as_long_as_the_page_says() {
    check_board::<Load>();
    check_board::<Rate>();
}

#[test]
fn entries_are_as_long_as_the_pages_say() {
    let below = |heading: &str| page("docs/configuration.md").section(heading).to_owned();
    let text = below("Size of the prefix table");
    for wanted in [
        format!("entry of {SLOT_BYTES} bytes"),
        format!("{SET_BYTES} * (entries / {}", SET_BYTES / SLOT_BYTES),
    ] {
        assert!(text.contains(&wanted), "no {wanted:?}");
    }
}
