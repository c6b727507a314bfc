//! Number: a JSON number's value, exactly as the standard library reads it.
//!
//! Few digits and a small power of ten are two doubles that are exact, and so is what they make, rounded once: no more
//! has to be known of them (Clinger). All others are read by the standard library.

/// The powers of ten that are doubles.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
/// Up to here every whole number is a double.
const EXACT: u64 = 1 << 53;
/// As many digits always fit a u64.
const FIT: usize = 19;

/// The number that text begins with, and its length; nothing for what is no JSON number, or none that is finite.
pub fn read(text: &str) -> Option<(f64, usize)> {
    let (all, text) = (text, text.as_bytes());
    let is_negative = text.first() == Some(&b'-');
    let (mut at, mut whole) = (usize::from(is_negative), 0);
    let begin = at;
    digits(text, &mut at, &mut whole);
    let mut count = at - begin;
    // JSON knows no leading zeros.
    if count == 0 || count > 1 && text[begin] == b'0' {
        return None;
    }
    let mut scale = 0;
    if text.get(at) == Some(&b'.') {
        at += 1;
        let begin = at;
        digits(text, &mut at, &mut whole);
        scale = at - begin;
        count += scale;
        if scale == 0 {
            return None;
        }
    }
    let mut is_plain = true;
    if let Some(b'e' | b'E') = text.get(at) {
        is_plain = false;
        at += 1 + usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let begin = at;
        digits(text, &mut at, &mut 0);
        if at == begin {
            return None;
        }
    }
    if is_plain && count <= FIT && whole <= EXACT && scale < POWERS.len() {
        let number = whole as f64 / POWERS[scale];
        return Some((if is_negative { -number } else { number }, at));
    }
    let number: f64 = all.get(..at)?.parse().ok()?;
    number.is_finite().then_some((number, at))
}

/// Passes over digits, and appends them to a number, whose value means nothing once it has more than fit.
fn digits(text: &[u8], at: &mut usize, number: &mut u64) {
    while let Some(eight) = text.get(*at..).and_then(|rest| rest.first_chunk()).and_then(|eight| whole(*eight)) {
        *number = number.wrapping_mul(100_000_000).wrapping_add(eight);
        *at += 8;
    }
    while let Some(digit) = text.get(*at).map(|b| b.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        *number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
        *at += 1;
    }
}

/// The number that eight digits are, if they all are digits: neighbours are joined thrice, all at a time.
fn whole(eight: [u8; 8]) -> Option<u64> {
    const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    const ZEROS: u64 = 0x3030_3030_3030_3030;
    let text = u64::from_le_bytes(eight);
    let above = text.wrapping_add(0x0606_0606_0606_0606);
    if text & HIGH != ZEROS || above & HIGH != ZEROS {
        return None;
    }
    let ones = text - ZEROS;
    let pairs = ones * 10 + (ones >> 8);
    const MASK: u64 = 0x0000_00ff_0000_00ff;
    let (low, high) = (pairs & MASK, (pairs >> 16) & MASK);
    Some((low.wrapping_mul(0x000f_4240_0000_0064).wrapping_add(high.wrapping_mul(0x0000_2710_0000_0001))) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(text: &str) {
        let expected: f64 = text.parse().unwrap();
        let read = read(&format!("{text},"));
        assert_eq!(
            read.map(|(number, length)| (number.to_bits(), length)),
            Some((expected.to_bits(), text.len())),
            "{text}"
        );
    }

    #[test]
    fn numbers_are_what_the_standard_library_reads() {
        for text in [
            "0",
            "-0",
            "-0.0",
            "0.1",
            "1e-7",
            "1E+7",
            "9007199254740993",
            "0.000000000000000000000000001",
            "123456789012345678901234567890",
        ] {
            same(text);
        }
        for _ in 0..200_000 {
            let (wide, narrow) = (f64::from_bits(fastrand::u64(..)), f32::from_bits(fastrand::u32(..)));
            let unit = fastrand::f32() - 0.5;
            if wide.is_finite() && narrow.is_finite() {
                for text in [
                    wide.to_string(),
                    narrow.to_string(),
                    f64::from(narrow).to_string(),
                    format!("{wide:e}"),
                    unit.to_string(),
                    f64::from(unit).to_string(),
                    format!("{unit:.6}"),
                    format!("{unit:.12}"),
                    format!("{unit:e}"),
                ] {
                    same(&text);
                }
            }
            same(&format!("{}.{:03}", fastrand::u64(..), fastrand::u32(..1000)));
        }
    }

    #[test]
    fn what_is_no_number_is_nothing() {
        for text in [
            "", "-", "+1", ".5", "1.", "01", "-01", "1e", "1e+", "NaN", "inf", "-inf", "null", "1e999", "-1e999", "x",
            "\"1\"",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        // What follows is the reader's.
        assert_eq!(read("0x10"), Some((0.0, 1)));
        assert_eq!(read("1.5.5"), Some((1.5, 3)));
    }
}
