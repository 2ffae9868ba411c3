//! The values that a column is written in; their layout is that of the board.

use super::Row;
use crate::hash::Table;
use crate::ids::EndpointId;

const VERSION: u8 = 2;

/// The keys of the news and of the base.
pub(super) fn keys<R: Row>(slot: u16) -> (String, String) {
    let news = format!("{}/{slot}", R::KEY);
    let base = format!("{news}/base");
    (news, base)
}

pub(super) fn encode<'a, R: Row + 'a>(
    out: &mut Vec<u8>,
    owner: u64,
    base: u32,
    rows: impl Iterator<Item = (EndpointId, &'a R)>,
) {
    out.clear();
    out.push(VERSION);
    out.extend_from_slice(&owner.to_le_bytes());
    out.extend_from_slice(&base.to_le_bytes());
    for (id, row) in rows {
        out.extend_from_slice(&id.0.to_le_bytes());
        row.encode(out);
    }
}

/// Number of the base and the rows that we have an endpoint for; `None` if it is not of `owner`.
pub(super) fn decode<'a, R: Row>(
    bytes: &'a [u8],
    owner: u64,
    positions: &'a Table<u16, usize>,
) -> Option<(u32, impl Iterator<Item = (usize, R)> + use<'a, R>)> {
    let (&VERSION, bytes) = bytes.split_first()? else {
        return None;
    };
    let (name, bytes) = bytes.split_first_chunk()?;
    let (base, rows) = bytes.split_first_chunk()?;
    if u64::from_le_bytes(*name) != owner {
        return None;
    }
    let row = move |row: &[u8]| {
        let (id, figure) = row.split_first_chunk()?;
        let position = positions.get(&u16::from_le_bytes(*id))?;
        Some((*position, R::decode(figure)?))
    };
    let rows = rows.chunks_exact(2 + R::BYTES).filter_map(row);
    Some((u32::from_le_bytes(*base), rows))
}
