"""Genotypes of published architectures, in the notation of their sources.

Each row: name -> (text, source). The source names the method, its paper, and
the public repository and file of the text; only white space and the notation
of `range` are ours. `genotypes.PUBLISHED` holds them parsed.
"""

TEXTS = {
    'DARTS_V1': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 0),
        ('skip_connect', 0), ('sep_conv_3x3', 1),
        ('skip_connect', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 0), ('skip_connect', 2),
      ], normal_concat=range(2, 6),
      reduce=[
        ('max_pool_3x3', 0), ('max_pool_3x3', 1),
        ('skip_connect', 2), ('max_pool_3x3', 0),
        ('max_pool_3x3', 0), ('skip_connect', 2),
        ('skip_connect', 2), ('avg_pool_3x3', 0),
      ], reduce_concat=range(2, 6))''',
        'DARTS, first order (Liu et al. 2019); '
        'quark0/darts cnn/genotypes.py'),
    'DARTS_V2': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 1), ('skip_connect', 0),
        ('skip_connect', 0), ('dil_conv_3x3', 2),
      ], normal_concat=range(2, 6),
      reduce=[
        ('max_pool_3x3', 0), ('max_pool_3x3', 1),
        ('skip_connect', 2), ('max_pool_3x3', 1),
        ('max_pool_3x3', 0), ('skip_connect', 2),
        ('skip_connect', 2), ('max_pool_3x3', 1),
      ], reduce_concat=range(2, 6))''',
        'DARTS, second order (Liu et al. 2019); '
        'quark0/darts cnn/genotypes.py'),
    'PC_DARTS_cifar': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 1), ('skip_connect', 0),
        ('sep_conv_3x3', 0), ('dil_conv_3x3', 1),
        ('sep_conv_5x5', 0), ('sep_conv_3x3', 1),
        ('avg_pool_3x3', 0), ('dil_conv_3x3', 1),
      ], normal_concat=range(2, 6),
      reduce=[
        ('sep_conv_5x5', 1), ('max_pool_3x3', 0),
        ('sep_conv_5x5', 1), ('sep_conv_5x5', 2),
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 3),
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 2),
      ], reduce_concat=range(2, 6))''',
        'PC-DARTS (Xu et al. 2020); '
        'yuhuixu1993/PC-DARTS genotypes.py'),
    'PDARTS': ('''Genotype(
      normal=[
        ('skip_connect', 0), ('dil_conv_3x3', 1),
        ('skip_connect', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 3),
        ('sep_conv_3x3', 0), ('dil_conv_5x5', 4),
      ], normal_concat=range(2, 6),
      reduce=[
        ('avg_pool_3x3', 0), ('sep_conv_5x5', 1),
        ('sep_conv_3x3', 0), ('dil_conv_5x5', 2),
        ('max_pool_3x3', 0), ('dil_conv_3x3', 1),
        ('dil_conv_3x3', 1), ('dil_conv_5x5', 3),
      ], reduce_concat=range(2, 6))''',
        'P-DARTS (Chen et al. 2019); '
        'chenxin061/pdarts genotypes.py'),
    'GDAS_V1': ('''Genotype(
      normal=[
        ('skip_connect', 0), ('skip_connect', 1),
        ('skip_connect', 0), ('sep_conv_5x5', 2),
        ('sep_conv_3x3', 3), ('skip_connect', 0),
        ('sep_conv_5x5', 4), ('sep_conv_3x3', 3),
      ], normal_concat=range(2, 6),
      reduce=[
        ('sep_conv_5x5', 0), ('sep_conv_3x3', 1),
        ('sep_conv_5x5', 2), ('sep_conv_5x5', 1),
        ('dil_conv_5x5', 2), ('sep_conv_3x3', 1),
        ('sep_conv_5x5', 0), ('sep_conv_5x5', 1),
      ], reduce_concat=range(2, 6))''',
        'GDAS (Dong and Yang 2019); '
        'D-X-Y/AutoDL-Projects nas_infer_model/DXYs/genotypes.py'),
    'SDARTS_RS_s5': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 0),
        ('sep_conv_5x5', 1), ('skip_connect', 0),
        ('sep_conv_3x3', 3), ('skip_connect', 1),
        ('sep_conv_3x3', 1), ('dil_conv_3x3', 2),
      ], normal_concat=range(2, 6),
      reduce=[
        ('max_pool_3x3', 0), ('sep_conv_3x3', 1),
        ('skip_connect', 2), ('max_pool_3x3', 0),
        ('dil_conv_5x5', 3), ('max_pool_3x3', 0),
        ('sep_conv_3x3', 2), ('sep_conv_5x5', 3),
      ], reduce_concat=range(2, 6))''',
        'SDARTS-RS (Chen and Hsieh 2020); '
        'xiangning-chen/SmoothDARTS sota/cnn/genotypes.py'),
    'GM_DARTS1_best': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
        ('dil_conv_3x3', 2), ('sep_conv_5x5', 1),
        ('sep_conv_3x3', 1), ('dil_conv_5x5', 3),
        ('skip_connect', 0), ('dil_conv_3x3', 2),
      ], normal_concat=range(2, 6),
      reduce=[
        ('max_pool_3x3', 0), ('max_pool_3x3', 1),
        ('dil_conv_5x5', 2), ('sep_conv_3x3', 0),
        ('dil_conv_3x3', 3), ('skip_connect', 1),
        ('dil_conv_5x5', 4), ('sep_conv_5x5', 3),
      ], reduce_concat=range(2, 6))''',
        'GM-NAS with DARTS, first order (Hu et al. 2022); '
        'skhu101/GM-NAS WS-GM/sota/cnn/genotypes.py'),
    'GM_SNAS_s3_id6': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 0), ('sep_conv_5x5', 1),
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 2),
        ('sep_conv_3x3', 1), ('dil_conv_5x5', 3),
        ('dil_conv_3x3', 2), ('skip_connect', 0),
      ], normal_concat=range(2, 6),
      reduce=[
        ('max_pool_3x3', 0), ('sep_conv_3x3', 1),
        ('max_pool_3x3', 0), ('skip_connect', 2),
        ('dil_conv_5x5', 3), ('skip_connect', 2),
        ('skip_connect', 2), ('dil_conv_3x3', 3),
      ], reduce_concat=range(2, 6))''',
        'GM-NAS with SNAS, seed 3 (Hu et al. 2022); '
        'skhu101/GM-NAS WS-GM/sota/cnn/genotypes.py'),
    'NASNet': ('''Genotype(
      normal=[
        ('sep_conv_5x5', 1), ('sep_conv_3x3', 0),
        ('sep_conv_5x5', 0), ('sep_conv_3x3', 0),
        ('avg_pool_3x3', 1), ('skip_connect', 0),
        ('avg_pool_3x3', 0), ('avg_pool_3x3', 0),
        ('sep_conv_3x3', 1), ('skip_connect', 1),
      ], normal_concat=range(2, 7),
      reduce=[
        ('sep_conv_5x5', 1), ('sep_conv_7x7', 0),
        ('max_pool_3x3', 1), ('sep_conv_7x7', 0),
        ('avg_pool_3x3', 1), ('sep_conv_5x5', 0),
        ('skip_connect', 3), ('avg_pool_3x3', 2),
        ('sep_conv_3x3', 2), ('max_pool_3x3', 1),
      ], reduce_concat=[4, 5, 6])''',
        'NASNet-A (Zoph et al. 2018); '
        'quark0/darts cnn/genotypes.py'),
    'AmoebaNet': ('''Genotype(
      normal=[
        ('avg_pool_3x3', 0), ('max_pool_3x3', 1),
        ('sep_conv_3x3', 0), ('sep_conv_5x5', 2),
        ('sep_conv_3x3', 0), ('avg_pool_3x3', 3),
        ('sep_conv_3x3', 1), ('skip_connect', 1),
        ('skip_connect', 0), ('avg_pool_3x3', 1),
      ], normal_concat=[4, 5, 6],
      reduce=[
        ('avg_pool_3x3', 0), ('sep_conv_3x3', 1),
        ('max_pool_3x3', 0), ('sep_conv_7x7', 2),
        ('sep_conv_7x7', 0), ('avg_pool_3x3', 1),
        ('max_pool_3x3', 0), ('max_pool_3x3', 1),
        ('conv_7x1_1x7', 0), ('sep_conv_3x3', 5),
      ], reduce_concat=[3, 4, 6])''',
        'AmoebaNet-A (Real et al. 2019); '
        'quark0/darts cnn/genotypes.py'),
    'SNAS': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
        ('skip_connect', 0), ('dil_conv_3x3', 1),
        ('skip_connect', 1), ('skip_connect', 0),
        ('skip_connect', 0), ('sep_conv_3x3', 1),
      ], normal_concat=range(2, 6),
      reduce=[
        ('max_pool_3x3', 0), ('max_pool_3x3', 1),
        ('max_pool_3x3', 1), ('skip_connect', 2),
        ('skip_connect', 2), ('max_pool_3x3', 1),
        ('max_pool_3x3', 0), ('dil_conv_5x5', 2),
      ], reduce_concat=range(2, 6))''',
        'SNAS, mild constraint (Xie et al. 2019); '
        'xiaomi-automl/FairDARTS fairdarts/genotypes.py'),
    'PC_DARTS_image': ('''Genotype(
      normal=[
        ('skip_connect', 1), ('sep_conv_3x3', 0),
        ('sep_conv_3x3', 0), ('skip_connect', 1),
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 3),
        ('sep_conv_3x3', 1), ('dil_conv_5x5', 4),
      ], normal_concat=range(2, 6),
      reduce=[
        ('sep_conv_3x3', 0), ('skip_connect', 1),
        ('dil_conv_5x5', 2), ('max_pool_3x3', 1),
        ('sep_conv_3x3', 2), ('sep_conv_3x3', 1),
        ('sep_conv_5x5', 0), ('sep_conv_3x3', 3),
      ], reduce_concat=range(2, 6))''',
        'PC-DARTS, searched on ImageNet (Xu et al. 2020); '
        'yuhuixu1993/PC-DARTS genotypes.py'),
    'MdeNAS': ('''Genotype(
      normal=[
        ('sep_conv_5x5', 1), ('sep_conv_3x3', 0),
        ('skip_connect', 0), ('sep_conv_5x5', 1),
        ('sep_conv_5x5', 3), ('sep_conv_3x3', 1),
        ('dil_conv_5x5', 3), ('max_pool_3x3', 4),
      ], normal_concat=range(2, 6),
      reduce=[
        ('max_pool_3x3', 0), ('sep_conv_5x5', 1),
        ('skip_connect', 0), ('skip_connect', 1),
        ('sep_conv_3x3', 3), ('skip_connect', 2),
        ('dil_conv_3x3', 3), ('sep_conv_5x5', 0),
      ], reduce_concat=range(2, 6))''',
        'MdeNAS (Zheng et al. 2019); '
        'xiaomi-automl/FairDARTS fairdarts/genotypes.py'),
    'ENASNet': ('''Genotype(
      normal=[
        ('sep_conv_3x3', 1), ('skip_connect', 1),
        ('sep_conv_5x5', 1), ('skip_connect', 0),
        ('avg_pool_3x3', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 0), ('avg_pool_3x3', 1),
        ('sep_conv_5x5', 1), ('avg_pool_3x3', 0),
      ], normal_concat=range(2, 7),
      reduce=[
        ('sep_conv_5x5', 0), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 1), ('avg_pool_3x3', 1),
        ('sep_conv_3x3', 1), ('avg_pool_3x3', 1),
        ('avg_pool_3x3', 1), ('sep_conv_5x5', 4),
        ('sep_conv_3x3', 5), ('sep_conv_5x5', 0),
      ], reduce_concat=range(2, 7))''',
        'ENAS (Pham et al. 2018); '
        'xiaomi-automl/FairDARTS fairdarts/genotypes.py'),
}
