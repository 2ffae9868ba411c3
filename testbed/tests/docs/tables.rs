//! Tables of a page, by the text of a heading above them.

use crate::pages::Page;

/// A table: names of the columns, and rows of cells.
pub struct Table {
    columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The cell of a row in the column of this name.
    pub fn cell<'a>(&self, row: &'a [String], column: &str) -> &'a str {
        let at = self.columns.iter().position(|name| name == column);
        &row[at.unwrap_or_else(|| panic!("no column {column} in {:?}", self.columns))]
    }
}

impl Page {
    /// The text below a heading, up to the next heading of any level.
    pub fn section(&self, heading: &str) -> &str {
        let start = format!("# {heading}\n");
        let (_, below) = self.text.split_once(&start).expect(heading);
        below.split("\n#").next().unwrap_or_default()
    }

    /// The tables below a heading. The first cell of a row must not be empty.
    pub fn tables(&self, heading: &str) -> Vec<Table> {
        let mut tables: Vec<Table> = Vec::new();
        let mut inside = false;
        for line in self.section(heading).lines() {
            let Some(row) = line.trim().strip_prefix('|') else {
                inside = false;
                continue;
            };
            let cells: Vec<String> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
            match tables.last_mut().filter(|_| inside) {
                None => tables.push(Table {
                    columns: cells,
                    rows: Vec::new(),
                }),
                Some(_) if row.starts_with("---") => {}
                Some(table) => table.rows.push(cells),
            }
            inside = true;
        }
        tables
    }

    /// The only table below a heading.
    pub fn table(&self, heading: &str) -> Table {
        let mut tables = self.tables(heading);
        assert_eq!(tables.len(), 1, "tables below {heading}");
        tables.remove(0)
    }
}

/// A number as the pages write it: `10,240`, or a product such as `2 * 640`.
pub fn number(text: &str) -> f64 {
    let factors = text.split('*').map(|part| part.trim().replace(',', ""));
    let factor = |part: String| part.parse::<f64>().unwrap_or_else(|_| panic!("{text:?}"));
    factors.map(factor).product()
}
