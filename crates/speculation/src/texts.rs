//! The texts that drafts are taken from. Those in flight are all held; of those that ended, the newest, up to a number of
//! tokens.

use std::collections::VecDeque;
use std::ops::Range;

/// Number of a text. It becomes that of another one when the text is dropped.
pub(crate) type TextId = u32;

/// A text and how much of it is in the index.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub(crate) tokens: Vec<u32>,
    /// The request that it is of.
    pub(crate) scope: u64,
    /// The first end of a context that is not in the index.
    pub(crate) next_end: usize,
}

impl Text {
    /// Ends of contexts that are not in the index and that a token follows.
    pub(crate) fn pending(&self) -> Range<usize> {
        self.next_end..self.tokens.len().max(self.next_end)
    }
}

/// Texts by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    texts: Vec<Text>,
    /// Numbers of no text.
    free: Vec<TextId>,
    /// Those that ended, oldest first.
    ended: VecDeque<TextId>,
    num_ended_tokens: usize,
}

impl Texts {
    /// A text that may grow until it ends.
    pub(crate) fn begin(&mut self, text: Text) -> TextId {
        if let Some(id) = self.free.pop() {
            self.texts[id as usize] = text;
            return id;
        }
        self.texts.push(text);
        self.texts.len() as TextId - 1
    }

    /// The tokens of a text; none of one that is not there.
    pub(crate) fn get(&self, id: TextId) -> &[u32] {
        self.text(id).map_or(&[], |text| &text.tokens)
    }

    /// A text, where it is there.
    pub(crate) fn text(&self, id: TextId) -> Option<&Text> {
        self.texts.get(id as usize)
    }

    /// The same, to change it.
    pub(crate) fn text_mut(&mut self, id: TextId) -> Option<&mut Text> {
        self.texts.get_mut(id as usize)
    }

    /// A text grows no more. It stays until there are more than `most_tokens` in such texts and it is the oldest.
    pub(crate) fn end(&mut self, id: TextId, most_tokens: usize) {
        self.num_ended_tokens += self.get(id).len();
        self.ended.push_back(id);
        while self.num_ended_tokens > most_tokens
            && let Some(oldest) = self.ended.pop_front()
        {
            self.num_ended_tokens -= self.get(oldest).len();
            self.texts[oldest as usize] = Text::default();
            self.free.push(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_texts_that_ended_go() {
        let mut texts = Texts::default();
        let text = |token| Text { tokens: vec![token; 10], scope: 0, next_end: 1 };
        let ids: Vec<TextId> = (0..4).map(|idx| texts.begin(text(idx))).collect();
        texts.end(ids[1], 25);
        texts.end(ids[0], 25);
        assert_eq!(texts.get(ids[1]).len(), 10);
        texts.end(ids[3], 25);
        assert_eq!([0, 1, 2, 3].map(|idx| texts.get(ids[idx]).len()), [10, 0, 10, 10]);
        assert_eq!(texts.text_mut(ids[1]).unwrap().pending(), 0..0);
        assert_eq!(texts.begin(text(9)), ids[1]);
        assert_eq!(texts.text_mut(ids[1]).unwrap().pending(), 1..10);
        assert_eq!(texts.get(77), &[0; 0]);
    }
}
