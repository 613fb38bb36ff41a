//! The matrices of a model: dense, or by product quantisation.

/// A matrix whose bulk lies in the model file's bytes, which every call is given.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Where the numbers, or the codes, begin.
    pub(super) start: usize,
    pub(super) codes: Option<Codes>,
}

/// What the codes of a quantised matrix stand for: a row is cut into parts, and each part is one of 256 centroids.
#[derive(Debug)]
pub(super) struct Codes {
    /// Width of a part. The last one has what remains.
    pub(super) width: usize,
    /// For each part its 256 centroids.
    pub(super) centroids: Vec<f32>,
    /// Rows have unit length, and their lengths are quantised on their own.
    pub(super) norms: Option<Norms>,
}

/// The lengths of the rows.
#[derive(Debug)]
pub(super) struct Norms {
    /// Where the codes begin, one a row.
    pub(super) start: usize,
    /// The 256 lengths.
    pub(super) lengths: Vec<f32>,
}

/// Codes to a part.
pub(super) const CENTROIDS: usize = 256;

impl Codes {
    /// How many parts, and so bytes, a row has.
    pub(super) fn parts(&self, columns: usize) -> usize {
        columns.div_ceil(self.width)
    }

    fn norm(&self, bytes: &[u8], row: usize) -> f32 {
        self.norms.as_ref().map_or(1.0, |norms| norms.lengths[usize::from(bytes[norms.start + row])])
    }

    /// Calls `part` with the columns and the centroid of each part of a row.
    #[inline]
    fn decode(&self, codes: &[u8], columns: usize, mut part: impl FnMut(usize, &[f32])) {
        for (number, &code) in codes.iter().enumerate() {
            let column = number * self.width;
            let width = self.width.min(columns - column);
            let start = column * CENTROIDS + usize::from(code) * width;
            part(column, &self.centroids[start..start + width]);
        }
    }
}

impl Matrix {
    /// The numbers of a row of a dense matrix, which need not be aligned.
    #[inline]
    fn dense<'a>(&self, bytes: &'a [u8], row: usize) -> &'a [[u8; 4]] {
        let start = self.start + row * self.columns * 4;
        bytes[start..start + self.columns * 4].as_chunks().0
    }

    /// `to += row`.
    #[inline]
    pub(super) fn add_row(&self, bytes: &[u8], row: u32, to: &mut [f32]) {
        let row = row as usize;
        let Some(codes) = &self.codes else {
            for (to, number) in to.iter_mut().zip(self.dense(bytes, row)) {
                *to += f32::from_le_bytes(*number);
            }
            return;
        };
        let norm = codes.norm(bytes, row);
        let parts = codes.parts(self.columns);
        let row = &bytes[self.start + row * parts..][..parts];
        if codes.width == 2 && self.columns.is_multiple_of(2) {
            // The width that fastText quantises with unless told otherwise.
            let centroids = codes.centroids.as_chunks::<2>().0.chunks_exact(CENTROIDS);
            for ((to, &code), centroids) in to.as_chunks_mut::<2>().0.iter_mut().zip(row).zip(centroids) {
                let [left, right] = centroids[usize::from(code)];
                to[0] += norm * left;
                to[1] += norm * right;
            }
            return;
        }
        codes.decode(row, self.columns, |column, centroid| {
            for (to, number) in to[column..].iter_mut().zip(centroid) {
                *to += norm * number;
            }
        });
    }

    /// The product of a row and a vector.
    #[inline]
    pub(super) fn dot(&self, bytes: &[u8], row: u32, vector: &[f32]) -> f32 {
        let row = row as usize;
        let Some(codes) = &self.codes else {
            return dot(self.dense(bytes, row), vector);
        };
        let parts = codes.parts(self.columns);
        let mut sum = 0.0;
        codes.decode(&bytes[self.start + row * parts..][..parts], self.columns, |column, centroid| {
            sum += centroid.iter().zip(&vector[column..]).map(|(a, b)| a * b).sum::<f32>();
        });
        sum * codes.norm(bytes, row)
    }
}

/// A product in eight sums side by side, which the compiler makes vectors of.
#[inline]
fn dot(row: &[[u8; 4]], vector: &[f32]) -> f32 {
    let (rows, row_rest) = row.as_chunks::<8>();
    let (vectors, vector_rest) = vector.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (row, vector) in rows.iter().zip(vectors) {
        for ((sum, number), factor) in sums.iter_mut().zip(row).zip(vector) {
            *sum += f32::from_le_bytes(*number) * factor;
        }
    }
    let rest = row_rest.iter().zip(vector_rest).map(|(number, factor)| f32::from_le_bytes(*number) * factor).sum::<f32>();
    sums.iter().sum::<f32>() + rest
}
