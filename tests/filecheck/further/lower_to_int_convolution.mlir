// PASSES: quantize-weights,lower-to-int

builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    // CHECK: %x = int.embedding
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x8xf32>>} : (tensor<?xi64>) -> tensor<?x8x!quant.uniform<u16:f32, 0.0001:32768>>
    /// three products of 2^15 · 2^15 are one bit more than s32 has
    // CHECK-NEXT: %c.acc = int.causal_conv %x {acc_shift = 1 : i64, bias = {{.*}} tensor<8xsi32>>, layer = 0 : i64, weight = {{.*}} tensor<8x3xsi16>>, x_zero = 32768 : i64} : (tensor<?x8xui16>) -> tensor<?x8xsi32>
    /// weights have a scale of each channel
    // CHECK-NEXT: %c = int.requant %c.acc {multiplier = {{.*}} tensor<8xsi32>>, {{.*}} zero_point = 128 : i64} : (tensor<?x8xsi32>) -> tensor<?x8xui8>
    %c = llm.causal_conv %x {bias = #mqc.weight<"b", "0", tensor<8xf32>>, layer = 0, weight = #mqc.weight<"w", "0", tensor<8x3xf32>>} : (tensor<?x8x!quant.uniform<u16:f32, 0.0001:32768>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    %l = llm.linear %c {range = array<f64: -12.0, 10.0>, weight = #mqc.weight<"wl", "0", tensor<16x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
