// PASSES: quantize-weights,lower-to-int

builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x8xf32>>} : (tensor<?xi64>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    /// what is added to scores of keys is in steps of the scores, which the softmax then rescales
    // CHECK: %a = int.attention %x, %x, %x {{.*}} key_bias = #mqc.weight<"a.key_bias", {{.*}} tensor<2x8xsi32>>, {{.*}} score_multiplier = 1269007978 : i64, score_shift = 0 : i64
    %a = llm.attention %x, %x, %x {key_bias = #mqc.weight<"slopes", "0", tensor<2x8xf32>>, layer = 0, heads = 2, kv_heads = 2, scale = 0.5} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>, tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>, tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>
    %l = llm.linear %a {range = array<f64: -12.0, 10.0>, weight = #mqc.weight<"wl", "0", tensor<16x8xf32>>} : (tensor<?x8x!quant.uniform<u8:f32, 0.02:128>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
