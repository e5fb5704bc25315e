//! A byte trie for prefix search over the pieces of a vocabulary. Read-only once built.

use std::collections::VecDeque;

#[derive(Clone, Debug, Default)]
struct Node {
    first_edge: u32,
    num_edges: u16,
    value: Option<u32>,
}

/// Keys to values, searched by common prefix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trie {
    nodes: Vec<Node>,
    // Edge `i` leads to node `i + 1`: nodes are made in the order of the edges that reach them.
    edges: Vec<u8>,
}

impl Trie {
    /// Builds a trie; of equal keys the first counts.
    pub(crate) fn new<'a>(entries: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut keys: Vec<(&[u8], u32)> = entries.map(|(key, value)| (key.as_bytes(), value)).collect();
        keys.sort_by_key(|&(key, _)| key);
        let mut trie = Self { nodes: vec![Node::default()], edges: Vec::new() };
        let mut queue = VecDeque::from([(0usize, 0..keys.len(), 0usize)]);
        while let Some((node_idx, range, depth)) = queue.pop_front() {
            let first_edge = trie.edges.len();
            let mut value = None;
            let mut start = range.start;
            while start < range.end {
                let Some(&byte) = keys[start].0.get(depth) else {
                    value = value.or(Some(keys[start].1));
                    start += 1;
                    continue;
                };
                let len = keys[start..range.end]
                    .iter()
                    .take_while(|(key, _)| key.get(depth) == Some(&byte))
                    .count();
                trie.edges.push(byte);
                queue.push_back((trie.nodes.len(), start..start + len, depth + 1));
                trie.nodes.push(Node::default());
                start += len;
            }
            let num_edges = trie.edges.len() - first_edge;
            trie.nodes[node_idx] = Node { first_edge: first_edge as u32, num_edges: num_edges as u16, value };
        }
        trie
    }

    /// Every key that `text` starts with, shortest first: its length in bytes and its value.
    pub(crate) fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut node = self.nodes.first();
        text.iter()
            .enumerate()
            .map_while(move |(depth, &byte)| {
                node = self.child(node?, byte);
                node.map(|node| (depth + 1, node.value))
            })
            .filter_map(|(len, value)| value.map(|value| (len, value)))
    }

    /// The longest key that `text` starts with.
    pub(crate) fn longest_prefix(&self, text: &[u8]) -> Option<usize> {
        self.prefixes(text).last().map(|(len, _)| len)
    }

    fn child(&self, node: &Node, byte: u8) -> Option<&Node> {
        let first = node.first_edge as usize;
        let edges = self.edges.get(first..first + usize::from(node.num_edges))?;
        let found = edges.binary_search(&byte).ok()?;
        self.nodes.get(first + found + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_prefix() {
        let trie = Trie::new([("ab", 1), ("abc", 2), ("b", 3), ("äb", 4)].into_iter());
        assert_eq!(trie.prefixes("abcd".as_bytes()).collect::<Vec<_>>(), [(2, 1), (3, 2)]);
        assert_eq!(trie.prefixes("äbc".as_bytes()).collect::<Vec<_>>(), [(3, 4)]);
        assert_eq!(trie.longest_prefix(b"xab"), None);
        assert_eq!(Trie::default().longest_prefix(b"a"), None);
    }
}
