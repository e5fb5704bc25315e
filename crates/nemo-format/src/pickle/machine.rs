//! The stack machine: opcodes of protocols 0 to 5 that torch and its checkpoints write.

use super::names::{Names, is_allowed};
use super::{Pickle, Value, ValueId};
use crate::FormatError;

/// Values that a real checkpoint's largest pickle stays far below.
const MAX_VALUES: usize = 1 << 24;
const MAX_BYTES: usize = 1 << 30;

/// Reads the pickle `bytes` of weights.
#[cfg(test)]
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Pickle, FormatError> {
    parse_names(bytes, file, Names::Weights)
}

/// Reads the pickle `bytes`, which may mention these names. `file` names it in errors.
pub(crate) fn parse_names(bytes: &[u8], file: &str, names: Names) -> Result<Pickle, FormatError> {
    if bytes.len() > MAX_BYTES {
        let (value, limit) = (bytes.len() as u64, MAX_BYTES as u64);
        return Err(FormatError::Limit { file: file.to_owned(), what: "bytes of pickle", value, limit });
    }
    Ok(parse_first(bytes, file, names)?.0)
}

/// Reads the first pickle in `bytes`, which may be longer, and returns its length too.
pub(crate) fn parse_first(bytes: &[u8], file: &str, names: Names) -> Result<(Pickle, usize), FormatError> {
    let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
    let mut machine = Machine {
        bytes,
        at: 0,
        file,
        names,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        encoded_bytes: 0,
    };
    loop {
        if let Some(root) = machine.step()? {
            return Ok((Pickle { values: machine.values, root }, machine.at));
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    file: &'a str,
    names: Names,
    values: Vec<Value>,
    stack: Vec<ValueId>,
    marks: Vec<usize>,
    memo: Vec<Option<ValueId>>,
    /// Sum of all byte strings made from text.
    encoded_bytes: usize,
}

impl<'a> Machine<'a> {
    fn damaged(&self, reason: impl Into<String>) -> FormatError {
        FormatError::Damaged {
            file: self.file.to_owned(),
            offset_bytes: self.at as u64,
            reason: reason.into(),
        }
    }

    fn take(&mut self, len_bytes: u64) -> Result<&'a [u8], FormatError> {
        let end = usize::try_from(len_bytes).ok().and_then(|len| self.at.checked_add(len));
        let piece = end
            .and_then(|end| self.bytes.get(self.at..end))
            .ok_or_else(|| self.damaged("the pickle ends early"))?;
        self.at += piece.len();
        Ok(piece)
    }

    /// An unsigned little-endian number of `len_bytes` bytes.
    fn number(&mut self, len_bytes: u64) -> Result<u64, FormatError> {
        Ok(self.take(len_bytes)?.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte)))
    }

    fn text(&mut self, len_bytes: u64) -> Result<String, FormatError> {
        let bytes = self.take(len_bytes)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.damaged("a string is not UTF-8"))
    }

    fn line(&mut self) -> Result<String, FormatError> {
        let rest = &self.bytes[self.at..];
        let len =
            rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| self.damaged("a line has no end"))?;
        let line = self.text(len as u64)?;
        self.at += 1;
        Ok(line)
    }

    fn new_value(&mut self, value: Value) -> Result<ValueId, FormatError> {
        if self.values.len() >= MAX_VALUES {
            let limit = MAX_VALUES as u64;
            return Err(FormatError::Limit {
                file: self.file.to_owned(),
                what: "pickled values",
                value: limit + 1,
                limit,
            });
        }
        self.values.push(value);
        Ok(ValueId(self.values.len() as u32 - 1))
    }

    fn push(&mut self, value: Value) -> Result<(), FormatError> {
        let id = self.new_value(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<ValueId, FormatError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.damaged("the stack is empty"));
        }
        self.stack.pop().ok_or_else(|| self.damaged("the stack is empty"))
    }

    fn top(&self) -> Result<ValueId, FormatError> {
        self.stack.last().copied().ok_or_else(|| self.damaged("the stack is empty"))
    }

    fn pop_mark(&mut self) -> Result<Vec<ValueId>, FormatError> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("no mark on the stack"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn memoize(&mut self, index: u64) -> Result<(), FormatError> {
        // A pickler counts up, so an index beyond the pickle's own length only serves to use up memory.
        let index = usize::try_from(index).ok().filter(|&index| index <= self.at);
        let index = index.ok_or_else(|| self.damaged("a memo index is out of range"))?;
        if self.memo.len() <= index {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(self.top()?);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), FormatError> {
        let found = usize::try_from(index).ok().and_then(|index| self.memo.get(index).copied().flatten());
        let id = found.ok_or_else(|| self.damaged("nothing was memoized under this index"))?;
        self.stack.push(id);
        Ok(())
    }

    fn global(&mut self, module: String, name: String) -> Result<(), FormatError> {
        if !is_allowed(self.names, &module, &name) {
            let (file, offset_bytes) = (self.file.to_owned(), self.at as u64);
            return Err(FormatError::ForbiddenGlobal { file, offset_bytes, module, name });
        }
        self.push(Value::Global(module, name))
    }

    fn call(&mut self) -> Result<(), FormatError> {
        let arguments = self.pop()?;
        let callable = self.pop()?;
        let Value::Global(_, name) = &self.values[callable.0 as usize] else {
            return Err(self.damaged("something that is no class is called"));
        };
        let value = match (name.as_str(), &self.values[arguments.0 as usize]) {
            ("OrderedDict", Value::Tuple(items)) if items.is_empty() => Value::Dict(Vec::new()),
            ("bytes", Value::Tuple(items)) if items.is_empty() => Value::Bytes(Vec::new()),
            ("encode", Value::Tuple(items)) => Value::Bytes(self.latin1(items)?),
            _ => Value::Object { callable, arguments, state: None },
        };
        if let Value::Bytes(bytes) = &value {
            // The memo lets two bytes of input mention a long string, so copies of it must not add up.
            self.encoded_bytes += bytes.len();
            if self.encoded_bytes > self.bytes.len() {
                return Err(self.damaged("its byte strings are longer than the pickle"));
            }
        }
        self.push(value)
    }

    /// The bytes of `_codecs.encode(text, 'latin1')`, which is how protocol 2 writes them.
    fn latin1(&self, items: &[ValueId]) -> Result<Vec<u8>, FormatError> {
        let text = |index: usize| match items.get(index).map(|id| &self.values[id.0 as usize]) {
            Some(Value::Str(text)) => Some(text.as_str()),
            _ => None,
        };
        let latin1 = text(1).is_some_and(|encoding| matches!(encoding, "latin1" | "latin-1"));
        let bytes =
            text(0).filter(|_| latin1).and_then(|text| text.chars().map(|c| u8::try_from(c).ok()).collect());
        bytes.ok_or_else(|| self.damaged("`_codecs.encode` is not given latin-1 text"))
    }

    fn build(&mut self) -> Result<(), FormatError> {
        let new_state = self.pop()?;
        let target = self.top()?;
        // A state on an OrderedDict is `module.state_dict()`'s `_metadata`, which means nothing here.
        if let Value::Object { state, .. } = &mut self.values[target.0 as usize] {
            *state = Some(new_state);
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<ValueId>) -> Result<(), FormatError> {
        let target = self.top()?;
        match &mut self.values[target.0 as usize] {
            Value::List(list) => list.extend(items),
            // What a class of its own would keep: a deque, a default dictionary.
            Value::Object { .. } if self.names == Names::Training => {}
            _ => return Err(self.damaged("items are appended to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[ValueId]) -> Result<(), FormatError> {
        let target = self.top()?;
        match &mut self.values[target.0 as usize] {
            Value::Dict(entries) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            Value::Object { .. } if self.names == Names::Training => Ok(()),
            _ => Err(self.damaged("items are set on something that is no dict")),
        }
    }

    /// Runs one opcode; returns the result at the last.
    fn step(&mut self) -> Result<Option<ValueId>, FormatError> {
        let opcode = self.number(1)? as u8;
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => {
                self.take(1)?;
            }
            0x95 => {
                self.take(8)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' => {
                let index = self.number(1)?;
                self.memoize(index)?;
            }
            b'r' => {
                let index = self.number(4)?;
                self.memoize(index)?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'h' => {
                let index = self.number(1)?;
                self.recall(index)?;
            }
            b'j' => {
                let index = self.number(4)?;
                self.recall(index)?;
            }
            _ => self.literal_or_structure(opcode)?,
        }
        Ok(None)
    }

    fn literal_or_structure(&mut self, opcode: u8) -> Result<(), FormatError> {
        match opcode {
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' | b'M' => {
                let value = self.number(if opcode == b'K' { 1 } else { 2 })?;
                self.push(Value::Int(value as i64))
            }
            b'J' => {
                let value = self.number(4)? as u32 as i32;
                self.push(Value::Int(value.into()))
            }
            0x8a | 0x8b => {
                let len_bytes = self.number(if opcode == 0x8a { 1 } else { 4 })?;
                self.long(len_bytes)
            }
            b'G' => {
                let bits = self.take(8)?.iter().fold(0_u64, |bits, &byte| (bits << 8) | u64::from(byte));
                self.push(Value::Float(f64::from_bits(bits)))
            }
            b'X' | 0x8c | 0x8d => {
                let len_bytes = self.number(if opcode == b'X' {
                    4
                } else if opcode == 0x8c {
                    1
                } else {
                    8
                })?;
                let text = self.text(len_bytes)?;
                self.push(Value::Str(text))
            }
            b'B' | b'C' | 0x8e => {
                let len_bytes = self.number(if opcode == b'B' {
                    4
                } else if opcode == b'C' {
                    1
                } else {
                    8
                })?;
                let bytes = self.take(len_bytes)?.to_vec();
                self.push(Value::Bytes(bytes))
            }
            _ => self.structure(opcode),
        }
    }

    /// A little-endian two's complement integer; torch's magic number is the only one wider than 64 bits.
    fn long(&mut self, len_bytes: u64) -> Result<(), FormatError> {
        let bytes = self.take(len_bytes)?;
        if bytes.len() > 8 {
            let bytes = bytes.to_vec();
            return self.push(Value::Bytes(bytes));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut extended = [if negative { 0xff } else { 0 }; 8];
        extended[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(extended)))
    }

    fn structure(&mut self, opcode: u8) -> Result<(), FormatError> {
        match opcode {
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' | b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(if opcode == b't' { Value::Tuple(items) } else { Value::List(items) })
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))
            }
            0x85..=0x87 => {
                let mut items = (0..opcode - 0x84).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push(Value::Tuple(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: ValueId| {
                    if let Value::Str(text) = &self.values[id.0 as usize] { Some(text.clone()) } else { None }
                };
                let names = text(module).zip(text(name));
                let (module, name) = names.ok_or_else(|| self.damaged("a global's name is no string"))?;
                self.global(module, name)
            }
            b'R' | 0x81 => self.call(),
            b'b' => self.build(),
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            _ => Err(self.damaged(format!("opcode {opcode:#04x} is not one that torch writes"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn foreign_names_are_refused() {
        let error = parse(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "data.pkl").unwrap_err();
        insta::assert_snapshot!(error, @"`data.pkl` wants to load `os.system` at byte 13, which is not among the allowed names");
        insta::assert_snapshot!(parse(b"\x80\x04\x95", "data.pkl").unwrap_err(), @"`data.pkl` is damaged at byte 3: the pickle ends early");
        insta::assert_snapshot!(parse(b"\x80\x04i", "data.pkl").unwrap_err(), @"`data.pkl` is damaged at byte 3: opcode 0x69 is not one that torch writes");
    }

    #[test]
    fn a_shared_string_cannot_be_multiplied() {
        let text = "a".repeat(255);
        let once =
            [b"\x80\x04c_codecs\nencode\nq\0\x8c\xff", text.as_bytes(), b"\x8c\x06latin1\x86q\x01R"].concat();
        let pickle = parse(&[&once[..], b"."].concat(), "t").unwrap();
        assert_eq!(*pickle.value(pickle.root()), Value::Bytes(text.into_bytes()));
        let many = [&once[..], &b"h\0h\x01R".repeat(100), b"."].concat();
        insta::assert_snapshot!(parse(&many, "t").unwrap_err(), @"`t` is damaged at byte 304: its byte strings are longer than the pickle");
        insta::assert_snapshot!(parse(b"c_codecs\nencode\n\x8c\x03\xe2\x9c\x93\x8c\x06latin1\x86R.", "t").unwrap_err(), @"`t` is damaged at byte 31: `_codecs.encode` is not given latin-1 text");
    }

    #[test]
    fn values_are_kept() {
        let pickle = parse(
            b"\x80\x04}(X\x01\x00\x00\x00aK\x07X\x01\x00\x00\x00b]\x94(M\x01\x02J\xff\xff\xff\xffeu.",
            "t",
        )
        .unwrap();
        let root = pickle.root();
        assert_eq!(pickle.int(pickle.entry(root, "a").unwrap()), Some(7));
        let list = pickle.items(pickle.entry(root, "b").unwrap()).unwrap();
        assert_eq!(list.iter().map(|&id| pickle.int(id).unwrap()).collect::<Vec<_>>(), [513, -1]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, "t");
        }

        #[test]
        fn no_opcodes_panic(bytes in proptest::collection::vec(proptest::sample::select(b"(01)].}ltdeaus2bRQqhNKM\x81\x85\x86\x87\x88\x90\x91\x93\x94c\n".to_vec()), 0..120)) {
            let _ = parse(&bytes, "t");
        }
    }
}
