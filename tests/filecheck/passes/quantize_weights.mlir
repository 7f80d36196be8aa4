// PASSES: quantize-weights{bits=4 group=32 keep8="b"}

// CHECK-LABEL: func.func @main
builtin.module attributes {mqc.level = "quant", mqc.context = 8 : i64} {
  func.func @main(%ids: tensor<?xi64>, %positions: tensor<?xi64>) -> tensor<?x16xf32> {
    /// a table that the logits share is quantized once, to 8 bits
    // CHECK: %x = llm.embedding %ids {table = #mqc.weight<"table", "[[TABLE:[0-9a-f]+]]", tensor<16x64xsi8>>, table_scale = #mqc.weight<"table.scale", "[[SCALE:[0-9a-f]+]]", tensor<16xf32>>}
    %x = llm.embedding %ids {table = #mqc.weight<"table", "0", tensor<16x64xf32>>} : (tensor<?xi64>) -> tensor<?x64x!quant.uniform<u16:f32, 0.001:32768>>
    /// groups of 32 input channels have integer factors
    // CHECK: %a = llm.linear %x {group_scale = #mqc.weight<"wa.group_scale", "{{[0-9a-f]+}}", tensor<64x2xui8>>, weight = #mqc.weight<"wa", "{{[0-9a-f]+}}", tensor<64x64xsi8>>, weight_bits = 4 : i64, weight_scale = #mqc.weight<"wa.scale", "{{[0-9a-f]+}}", tensor<64xf32>>}
    %a = llm.linear %x {weight = #mqc.weight<"wa", "0", tensor<64x64xf32>>} : (tensor<?x64x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x64x!quant.uniform<u16:f32, 0.001:32768>>
    /// what keep8 names has 8 bits
    // CHECK: %b = llm.linear %a {weight = #mqc.weight<"wb", "{{[0-9a-f]+}}", tensor<64x64xsi8>>, weight_bits = 8 : i64
    %b = llm.linear %a {weight = #mqc.weight<"wb", "0", tensor<64x64xf32>>} : (tensor<?x64x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x64x!quant.uniform<u16:f32, 0.001:32768>>
    // CHECK: %l = llm.linear %b {weight = #mqc.weight<"table", "[[TABLE]]", tensor<16x64xsi8>>, weight_bits = 8 : i64, weight_scale = #mqc.weight<"table.scale", "[[SCALE]]"
    %l = llm.linear %b {weight = #mqc.weight<"table", "0", tensor<16x64xf32>>} : (tensor<?x64x!quant.uniform<u16:f32, 0.001:32768>>) -> tensor<?x16xf32>
    func.return %l : tensor<?x16xf32>
  }
}
