//! Kubernetes' quantities: `250m`, `2`, `64Mi`, `1e3`.

/// A quantity in thousandths; `None` if it is none, or too large.
pub fn milli(quantity: &str) -> Option<i128> {
    let end = quantity.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(end);
    let (factor, divisor): (i128, i128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = u32::try_from(power).ok().filter(|power| *power <= 18)?;
            (1_000 * 10_i128.pow(power), 1)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    digits.checked_mul(factor)?.checked_div(scale.checked_mul(divisor)?)
}

/// Thousandths as a quantity.
pub fn text(milli: i128) -> String {
    if milli % 1_000 == 0 { (milli / 1_000).to_string() } else { format!("{milli}m") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("2", Some(2_000))]
    #[case("250m", Some(250))]
    #[case("1.5", Some(1_500))]
    #[case("0.5Gi", Some(536_870_912_000))]
    #[case("64Mi", Some(67_108_864_000))]
    #[case("1k", Some(1_000_000))]
    #[case("1e3", Some(1_000_000))]
    #[case("100n", Some(0))]
    #[case("", None)]
    #[case("many", None)]
    #[case("1Xi", None)]
    fn a_quantity_is_read(#[case] quantity: &str, #[case] thousandths: Option<i128>) {
        assert_eq!(milli(quantity), thousandths);
    }

    #[rstest::rstest]
    #[case(2_000, "2")]
    #[case(1_500, "1500m")]
    fn a_quantity_is_written(#[case] thousandths: i128, #[case] expected: &str) {
        assert_eq!(text(thousandths), expected);
    }
}
