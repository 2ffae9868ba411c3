//! Texts in the module, packed: the status page is a twentieth of it otherwise.
//!
//! What was there before is copied from there (LZ77), all of it written bit by bit: the length in 32 bits,
//! then 0 and the eight bits of a byte, or 1, how many bytes to copy less one, from how far back divided by 256
//! plus one, and the remainder in eight bits. Such a number is as many zeros as it has bits after its first
//! one, and the number. `build.rs` packs. O(bytes).

/// What was packed; of bytes that are no packed text as much as can be read.
pub fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bits = Bits { packed, at: 0 };
    let length = bits.read(32).unwrap_or_default();
    while out.len() < length {
        if bits.step(&mut out).is_none() {
            break;
        }
    }
    out
}

struct Bits<'a> {
    packed: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn step(&mut self, out: &mut Vec<u8>) -> Option<()> {
        if self.read(1)? == 0 {
            out.push(self.read(8)? as u8);
            return Some(());
        }
        let count = self.number()? + 1;
        let back = (self.number()? - 1) << 8 | self.read(8)?;
        for _ in 0..count {
            out.push(*out.get(out.len().checked_sub(back)?)?);
        }
        Some(())
    }

    fn number(&mut self) -> Option<usize> {
        let mut width = 0;
        while self.read(1)? == 0 {
            width += 1;
        }
        // More bits than a text can have bytes are no number.
        (width < 24).then_some(())?;
        Some(1 << width | self.read(width)?)
    }

    fn read(&mut self, count: u32) -> Option<usize> {
        let mut bits = 0;
        for _ in 0..count {
            let byte = self.packed.get(self.at / 8)?;
            bits = bits << 1 | usize::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(bits)
    }
}
