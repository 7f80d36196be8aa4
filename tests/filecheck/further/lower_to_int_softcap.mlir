// PASSES: quantize-weights,lower-to-int

/// a final softcap stays beside the program
// CHECK: mqc.logit_cap = 3.000000e+01 : f64
builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64, mqc.logit_cap = 30.0 : f64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x8xf32>>} : (tensor<?xi64>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    /// scores get steps of 50 / 2^13, of which 0.02 · 0.02 · 0.5 is 0.0328: 1.0486 · 2^-5
    // CHECK: %a = int.attention %x, %x, %x {cap_table = {{.*}} tensor<2049xsi32>>, {{.*}} score_multiplier = 1125899907 : i64, score_shift = 4 : i64, {{.*}} softcap = 5.000000e+01 : f64
    %a = llm.attention %x, %x, %x {layer = 0, heads = 2, kv_heads = 2, scale = 0.5, softcap = 50.0} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>, tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>, tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    %l = llm.linear %a {range = array<f64: -12.0, 10.0>, weight = #mqc.weight<"wl", "0", tensor<16x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
