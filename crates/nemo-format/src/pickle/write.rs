//! Pickles of the few structures that a checkpoint writer needs, in protocol 4 without memo or frames.

/// Appends opcodes.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A pickle of this protocol.
    pub(crate) fn new(protocol: u8) -> Self {
        Self { bytes: vec![0x80, protocol] }
    }

    /// The finished pickle.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    pub(crate) fn none(&mut self) {
        self.bytes.push(b'N');
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0x88 } else { 0x89 });
    }

    pub(crate) fn int(&mut self, value: u64) {
        if let Ok(small) = i32::try_from(value) {
            self.bytes.push(b'J');
            self.bytes.extend(small.to_le_bytes());
        } else {
            // LONG1 is signed: one bit more than the value's keeps it positive. Python writes as few bytes too.
            let len_bytes = (u64::BITS - value.leading_zeros()) / 8 + 1;
            let extended = u128::from(value).to_le_bytes();
            self.bytes.extend([0x8a, len_bytes as u8]);
            self.bytes.extend(&extended[..len_bytes as usize]);
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    pub(crate) fn global(&mut self, module: &str, name: &str) {
        self.bytes.push(b'c');
        self.bytes.extend(module.as_bytes());
        self.bytes.push(b'\n');
        self.bytes.extend(name.as_bytes());
        self.bytes.push(b'\n');
    }

    /// `(…)`.
    pub(crate) fn tuple(&mut self, items: impl FnOnce(&mut Self)) {
        self.bytes.push(b'(');
        items(self);
        self.bytes.push(b't');
    }

    /// `[…]`.
    pub(crate) fn list(&mut self, items: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"](");
        items(self);
        self.bytes.push(b'e');
    }

    /// `{…}`: keys and values in turn.
    pub(crate) fn dict(&mut self, items: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"}(");
        items(self);
        self.bytes.push(b'u');
    }

    /// `module.name(*arguments)`.
    pub(crate) fn call(&mut self, module: &str, name: &str, arguments: impl FnOnce(&mut Self)) {
        self.global(module, name);
        self.tuple(arguments);
        self.bytes.push(b'R');
    }

    /// An instance of a class with this state.
    pub(crate) fn instance(&mut self, module: &str, name: &str, state: impl FnOnce(&mut Self)) {
        self.global(module, name);
        self.bytes.extend(b")\x81");
        state(self);
        self.bytes.push(b'b');
    }

    /// A persistent id.
    pub(crate) fn persistent(&mut self, id: impl FnOnce(&mut Self)) {
        id(self);
        self.bytes.push(b'Q');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets in data files of more than 2 GiB do not fit the short form.
    #[test]
    fn integers_of_every_size_are_read_back() {
        let values: Vec<u64> =
            (0..63).map(|bits| 1 << bits).flat_map(|power: u64| [power - 1, power, power + 1]).collect();
        let mut pickle = Writer::new(4);
        pickle.tuple(|items| values.iter().for_each(|&value| items.int(value)));
        let bytes = pickle.finish();
        let pickle = crate::pickle::parse(&bytes, "f").unwrap();
        assert_eq!(pickle.sizes(pickle.root()).unwrap(), values);
    }
}
