//! Numbers, small tables and layers as people read them.

use model_spec::{AttentionBlock, Block, FfnBlock};

/// `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// What a layer of a model with several kinds consists of.
pub(crate) fn block_name(block: &Block) -> String {
    let attention = match block.attention {
        AttentionBlock::Attention { num_query_groups } => format!("attention of {num_query_groups} groups"),
        AttentionBlock::Linear => "linear".to_owned(),
        AttentionBlock::NoOp => "nothing".to_owned(),
    };
    let ffn = match block.ffn {
        FfnBlock::Mlp { ffn_hidden_size } => format!("mlp of {ffn_hidden_size}"),
        FfnBlock::Linear => "linear".to_owned(),
        FfnBlock::NoOp => "nothing".to_owned(),
    };
    format!("{attention}, {ffn}")
}

/// `270.4 MB`, decimal as file managers and disks count.
pub(crate) fn human_bytes(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB"])
}

/// `134.5 M`.
pub(crate) fn human_count(count: u64) -> String {
    scaled(count, &["", "k", "M", "B", "T"]).trim_end().to_owned()
}

fn scaled(number: u64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{number} {name}") } else { format!("{value:.1} {name}") }
}

/// Two columns, the first padded.
pub(crate) fn two_columns(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("  {name:<width$}  {value}\n")).collect()
}

/// Columns as wide as their widest cell: the first to the left, as names are, the others to the right, as numbers.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..num_columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(270_400_000), "270.4 MB");
        assert_eq!(human_count(134_515_008), "134.5 M");
        assert_eq!(human_count(12), "12");
        assert_eq!(two_columns(&[("a", "1".to_owned()), ("bcd", "2".to_owned())]), "  a    1\n  bcd  2\n");
        let rows = [["", "x"], ["abc", "1"], ["d", "200"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "         x\n  abc    1\n  d    200\n");
    }
}
