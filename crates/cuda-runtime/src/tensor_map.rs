//! Matrices as the GPU's copy engine takes them: tiles by coordinates instead of addresses.
#![expect(unsafe_code, reason = "the driver has a C interface")]

use std::ffi::{c_int, c_void};

use bytemuck::{Pod, Zeroable};
use tch::{Kind, Tensor};
use torch_ext::BadTensor;

use super::driver::Driver;
use super::{Device, arg};
use crate::CudaError;

// Numbers of `CUtensorMapDataType`, `CUtensorMapSwizzle` and `CUtensorMapL2promotion`.
const UINT8: c_int = 0;
const FLOAT16: c_int = 6;
const BFLOAT16: c_int = 9;
const SWIZZLE_128_BYTES: c_int = 3;
const PROMOTE_256_BYTES: c_int = 3;

/// `CUtensorMap`, a kernel's parameter. It holds the matrix's address, so it is good for as long as the matrix lives.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TensorMap([u64; 16]);

/// Which part of a matrix tiles are of.
#[derive(Clone, Copy)]
enum Cut {
    Whole,
    /// So many equal pieces of each row.
    Pieces(i64),
    /// Columns from the first number on, as many as the second.
    Columns(i64, i64),
}

impl TensorMap {
    /// Of a contiguous `[rows, columns]` bfloat16, float16 or FP8 matrix on `device`, in tiles of `tile_rows` rows and 128
    /// bytes, swizzled. Tiles reach past the matrix as zeros. `what` names it in errors.
    ///
    /// # Errors
    /// When the matrix is not of this kind, its rows do not start at multiples of 16 bytes, or a tile has over 256 rows.
    pub fn of(
        tensor: &Tensor,
        device: &Device,
        tile_rows: u32,
        what: &'static str,
    ) -> Result<Self, CudaError> {
        Self::encode(tensor, device, Cut::Whole, tile_rows, what)
    }

    /// The same of a matrix whose rows are cut into so many equal pieces: tiles have a coordinate more, the piece, between
    /// column and row. They reach past a piece as zeros, too.
    ///
    /// # Errors
    /// The same, and when pieces do not start at multiples of 16 bytes.
    pub fn of_pieces(
        tensor: &Tensor,
        device: &Device,
        num_pieces: i64,
        tile_rows: u32,
        what: &'static str,
    ) -> Result<Self, CudaError> {
        Self::encode(tensor, device, Cut::Pieces(num_pieces), tile_rows, what)
    }

    /// Of so many of a matrix's columns, from `start` on, as of a matrix.
    ///
    /// # Errors
    /// As [`of`](Self::of), and when the columns are not there or do not start at a multiple of 16 bytes.
    pub fn of_columns(
        tensor: &Tensor,
        device: &Device,
        (start, len): (i64, i64),
        tile_rows: u32,
        what: &'static str,
    ) -> Result<Self, CudaError> {
        Self::encode(tensor, device, Cut::Columns(start, len), tile_rows, what)
    }

    fn encode(
        tensor: &Tensor,
        device: &Device,
        cut: Cut,
        tile_rows: u32,
        what: &'static str,
    ) -> Result<Self, CudaError> {
        let address = arg::address(tensor, device, what)?;
        let bad = |expected: &str| {
            CudaError::BadTensor(BadTensor {
                what,
                expected: expected.to_owned(),
                actual: format!("{:?} {:?}", tensor.kind(), tensor.size()),
            })
        };
        let (data_type, elem_bytes) = match tensor.kind() {
            Kind::Half => (FLOAT16, 2),
            Kind::BFloat16 => (BFLOAT16, 2),
            Kind::Float8e4m3fn => (UINT8, 1),
            _ => return Err(bad("bfloat16, float16 or e4m3")),
        };
        let (rows, columns) = tensor.size2().map_err(|_| bad("a matrix"))?;
        if rows <= 0 || columns <= 0 || columns * elem_bytes % 16 != 0 || address % 16 != 0 {
            return Err(bad("a matrix whose rows start at multiples of 16 bytes"));
        }
        let (start, width, pieces) = match cut {
            Cut::Whole => (0, columns, 1),
            Cut::Pieces(pieces) if pieces > 0 && columns % pieces == 0 => (0, columns / pieces, pieces),
            Cut::Columns(start, len) if start >= 0 && len > 0 && start + len <= columns => (start, len, 1),
            Cut::Pieces(_) | Cut::Columns(..) => return Err(bad("a matrix that can be cut so")),
        };
        if start * elem_bytes % 16 != 0 || width * elem_bytes % 16 != 0 {
            return Err(bad("a matrix whose parts start at multiples of 16 bytes"));
        }
        let address = address + (start * elem_bytes) as u64;
        let (row_bytes, tile_elems) = ((elem_bytes * columns) as u64, 128 / elem_bytes as u32);
        let (sizes, pitch_bytes, tile, rank) = match cut {
            Cut::Whole | Cut::Columns(..) => {
                ([width as u64, rows as u64, 1], [row_bytes, 0], [tile_elems, tile_rows, 1], 2)
            }
            Cut::Pieces(_) => (
                [width as u64, pieces as u64, rows as u64],
                [(elem_bytes * width) as u64, row_bytes],
                [tile_elems, 1, tile_rows],
                3,
            ),
        };
        let strides = [1; 3];
        let mut map = Self::zeroed();
        let driver = Driver::get()?;
        // SAFETY: the driver writes the 128 bytes of `map`, aligned as it wants, and reads `rank` numbers of each list, one
        // fewer pitches; the address is only kept.
        let code = unsafe {
            (driver.tensor_map)(
                std::ptr::from_mut(&mut map).cast(),
                data_type,
                rank,
                address as *mut c_void,
                sizes.as_ptr(),
                pitch_bytes.as_ptr(),
                tile.as_ptr(),
                strides.as_ptr(),
                0,
                SWIZZLE_128_BYTES,
                PROMOTE_256_BYTES,
                0,
            )
        };
        driver.check("cuTensorMapEncodeTiled", code)?;
        Ok(map)
    }
}
